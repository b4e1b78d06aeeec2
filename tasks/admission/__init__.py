"""Decides in the caller's process whether a lane takes a request: live writer, room, shares, draining. Sends none."""
