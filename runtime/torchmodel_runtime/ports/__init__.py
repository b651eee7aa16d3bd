"""What carries requests in: `rest` (HTTP), `grpc_v2`. Made by `__main__`; each knows its own library, and `server`."""
