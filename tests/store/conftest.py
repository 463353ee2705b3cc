"""The stores under the contracts, for what is written once over them."""

from tests.contracts.conftest import blobs, clock, moto_dynamodb, moto_endpoint, table

__all__ = ["blobs", "clock", "moto_dynamodb", "moto_endpoint", "table"]
