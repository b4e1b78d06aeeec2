"""Flower for a fleet of gateways: reads workers, lanes and its Gateways page from Redis. Needs the extra ``flower``."""
