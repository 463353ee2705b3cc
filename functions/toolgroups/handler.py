"""GET, POST /v1/toolgroups; GET, DELETE /v1/toolgroups/{toolgroup_id}"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.neighbours import neighbours_app

app = neighbours_app("toolgroups", services)
handler = Mangum(app, lifespan="off")
