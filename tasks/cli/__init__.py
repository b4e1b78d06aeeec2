"""The command line of API hosts: peers and gateways as clients see them. Imports tasks and config, never workers."""
