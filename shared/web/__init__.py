"""How a service faces HTTP: the app factory, problems, authentication, health and the ops pages."""
