"""POST /v1/responses, also under /v1/openai: streams, under Lambda Web Adapter (run.sh)."""

# Half a second to import: better while the sandbox starts than while a client waits.
import openai  # noqa: F401
from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.responses_api.routes import responses_app

app = responses_app("create_openai_response", services)
handler = Mangum(app, lifespan="off")
