"""GET /v1/responses, also under /v1/openai"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.responses_api.routes import responses_app

app = responses_app("list_openai_responses", services)
handler = Mangum(app, lifespan="off")
