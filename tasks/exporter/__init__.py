"""``peerlane exporter``: reads gateways' metrics from Redis and serves them to Prometheus. Writes nothing."""
