"""A page to ask a model on, in a browser: image and question in, trace and looks out, while they come."""
