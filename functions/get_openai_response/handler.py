"""GET /v1/responses/{response_id}, also under /v1/openai: streams, under Lambda Web Adapter (run.sh)."""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.responses_api.routes import responses_app

app = responses_app("get_openai_response", services)
handler = Mangum(app, lifespan="off")
