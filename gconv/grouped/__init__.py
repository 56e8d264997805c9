"""The grouped convolution as layers of Flax: thin shells around `gconv.layers`, one for each of its APIs."""
