"""GET /v1/tool-runtime/list-tools, POST /v1/tool-runtime/invoke"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.neighbours import neighbours_app

app = neighbours_app("tool_runtime", services)
handler = Mangum(app, lifespan="off")
