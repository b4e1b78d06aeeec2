"""Reads gateways' status, alarms and rates from Redis. Sends no request."""
