"""POST /v1/responses/{response_id}/cancel, also under /v1/openai"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.responses_api.routes import responses_app

app = responses_app("cancel_openai_response", services)
handler = Mangum(app, lifespan="off")
