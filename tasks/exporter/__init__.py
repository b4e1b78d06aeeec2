"""``peerlane exporter``: what gateways tell in Redis, as Prometheus' metrics. Reads only."""
