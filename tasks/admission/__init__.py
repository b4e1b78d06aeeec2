"""What a process knows of a lane and whom it lets pass: a live writer, room, shares, draining. Sends no request."""
