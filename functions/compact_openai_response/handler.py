"""POST /v1/responses/compact, also under /v1/openai: may take minutes, under Lambda Web Adapter (run.sh)."""

# Half a second to import: better while the sandbox starts than while a client waits.
import openai  # noqa: F401
from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.responses_api.routes import responses_app

app = responses_app("compact_openai_response", services)
handler = Mangum(app, lifespan="off")
