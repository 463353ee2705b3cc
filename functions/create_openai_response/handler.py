"""POST /v1/responses, also under /v1/openai: streams, under Lambda Web Adapter (run.sh)."""

from mangum import Mangum
from turnloom.wire.responses_api.routes import responses_app

from turnloom.bootstrap import services

app = responses_app("create_openai_response", services)
handler = Mangum(app, lifespan="off")
