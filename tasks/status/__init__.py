"""What Redis says of gateways: status, alarms, rates. Reads only; sends no request."""
