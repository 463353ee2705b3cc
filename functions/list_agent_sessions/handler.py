"""GET /v1/agents/{agent_id}/sessions"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.agents_api.routes import agents_app

app = agents_app("list_agent_sessions", services)
handler = Mangum(app, lifespan="off")
