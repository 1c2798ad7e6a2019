"""The networks, named tensor by tensor as published."""
