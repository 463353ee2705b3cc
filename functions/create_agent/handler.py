"""POST /v1/agents"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.agents_api.routes import agents_app

app = agents_app("create_agent", services)
handler = Mangum(app, lifespan="off")
