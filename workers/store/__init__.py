"""The commit and its Lua, loading, checks of the server. No decision."""
