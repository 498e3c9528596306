SELECT fence_id FROM palaver.fence WHERE epoch = $1
