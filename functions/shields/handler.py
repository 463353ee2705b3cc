"""GET /v1/shields, GET /v1/shields/{shield_id}"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.neighbours import neighbours_app

app = neighbours_app("shields", services)
handler = Mangum(app, lifespan="off")
