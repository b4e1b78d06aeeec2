"""The commit and its Lua scripts, loading of peers, checks of the Redis server. Decides nothing."""
