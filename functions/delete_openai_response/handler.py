"""DELETE /v1/responses/{response_id}, also under /v1/openai"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.responses_api.routes import responses_app

app = responses_app("delete_openai_response", services)
handler = Mangum(app, lifespan="off")
