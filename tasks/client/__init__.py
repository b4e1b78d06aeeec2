"""The public API: Gateway, AsyncGateway, Fleet, AsyncFleet. No terminal, no file."""
