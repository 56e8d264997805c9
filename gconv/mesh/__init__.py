"""Many devices: everything else of gconv stays ignorant of them.

    partition   how a role splits over the devices of a mesh, around the implementation that runs on each
    sharding    the sharding that an operation's result states, on meshes with explicit and manual axes
    placement   where the arrays of a layer live, so that little travels
"""
