"""GET /v1/tools, GET /v1/tools/{tool_name}"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.neighbours import neighbours_app

app = neighbours_app("tools", services)
handler = Mangum(app, lifespan="off")
