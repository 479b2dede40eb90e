"""A training is rehearsed: run straight, again, and interrupted and resumed; are the ends equal, bit by bit?

`course` is the whole of it, one step after the other; `launching` one launch of the user's command, in a
process group of its own; `points` where it is interrupted; `trails` what the launches noted; `ends` the
final states, compared; `partings` where two trainings left one way; `causes` why, as far as the trails tell.
"""
