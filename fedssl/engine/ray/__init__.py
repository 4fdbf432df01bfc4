"""The engine that runs clients in Ray actors; nothing outside this folder imports Ray."""
