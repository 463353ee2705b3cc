"""/v1/conversations, their items, and each of these"""

from mangum import Mangum

from turnloom.bootstrap import services
from turnloom.wire.responses_api.conversations import conversations_app

app = conversations_app("conversations", services)
handler = Mangum(app, lifespan="off")
