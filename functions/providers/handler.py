"""GET /v1/providers, GET /v1/providers/{provider_id}"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.neighbours import neighbours_app

app = neighbours_app("providers", services)
handler = Mangum(app, lifespan="off")
