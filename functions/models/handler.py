"""GET, POST /v1/models; GET, DELETE /v1/models/{model_id}; GET /v1/openai/v1/models and .../models/{model_id}"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.neighbours import neighbours_app

app = neighbours_app("models", services)
handler = Mangum(app, lifespan="off")
