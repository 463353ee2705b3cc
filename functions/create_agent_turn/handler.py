"""POST /v1/agents/{agent_id}/session/{session_id}/turn: streams, under Lambda Web Adapter (run.sh)."""

# Half a second to import: better while the sandbox starts than while a client waits.
import openai  # noqa: F401
from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.agents_api.routes import agents_app

app = agents_app("create_agent_turn", services)
handler = Mangum(app, lifespan="off")
