from ssl import *  # noqa: F403
