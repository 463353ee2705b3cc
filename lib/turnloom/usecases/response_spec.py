from turnloom.wire.responses_api.spec import spec_of as spec_of
