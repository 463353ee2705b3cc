"""POST /v1/responses/input_tokens, also under /v1/openai"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.responses_api.routes import responses_app

app = responses_app("count_openai_input_tokens", services)
handler = Mangum(app, lifespan="off")
