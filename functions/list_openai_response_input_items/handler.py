"""GET /v1/responses/{response_id}/input_items, also under /v1/openai"""

from mangum import Mangum
from turnloom.wire.responses_api.routes import responses_app

from turnloom.bootstrap import services

app = responses_app("list_openai_response_input_items", services)
handler = Mangum(app, lifespan="off")
