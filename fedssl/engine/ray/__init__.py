"""The engine that runs clients in Ray actors. No module outside this folder imports Ray."""
