"""GET /v1/responses, also under /v1/openai"""

from mangum import Mangum
from turnloom.wire.responses_api.routes import responses_app

from turnloom.bootstrap import services

app = responses_app("list_openai_responses", services)
handler = Mangum(app, lifespan="off")
