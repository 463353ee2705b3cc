"""GET /v1/agents/{agent_id}/session/{session_id}"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.agents_api.routes import agents_app

app = agents_app("get_agents_session", services)
handler = Mangum(app, lifespan="off")
