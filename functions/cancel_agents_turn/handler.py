"""POST /v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/cancel"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.agents_api.routes import agents_app

app = agents_app("cancel_agents_turn", services)
handler = Mangum(app, lifespan="off")
