"""GET /v1/health, GET /v1/version, GET /v1/inspect/routes"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.neighbours import neighbours_app

app = neighbours_app("inspect", services)
handler = Mangum(app, lifespan="off")
