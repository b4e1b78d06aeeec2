"""The command line of API hosts and operators. Imports tasks and config, never workers."""
