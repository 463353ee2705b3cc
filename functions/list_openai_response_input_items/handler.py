"""GET /v1/responses/{response_id}/input_items, also under /v1/openai"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.responses_api.routes import responses_app

app = responses_app("list_openai_response_input_items", services)
handler = Mangum(app, lifespan="off")
