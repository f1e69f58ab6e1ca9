import gammabeta as gb

print(gb.lengths_to_mask([3, 1, 4], 5).int())
