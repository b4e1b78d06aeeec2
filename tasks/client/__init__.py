"""The public API: Gateway, AsyncGateway, Fleet, AsyncFleet. Writes to no terminal and no file."""
