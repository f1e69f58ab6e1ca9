import gammabeta as gb

print(gb.warm_allocator())  # what was set, or why nothing was
