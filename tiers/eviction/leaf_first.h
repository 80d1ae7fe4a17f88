// Makes any policy evict leaves first: an id that has tracked children (TrackInfo::parent) is not
// evictable, whatever the policy would choose. So no extent of a prefix outlives the one before it.
#pragma once

#include <memory>

#include "tiers/eviction/policy.h"

namespace terrace {

// The policy within is given what both the owner and the tree accept. A child may be tracked before
// its parent. When a parent is forgotten before its children, they go on without one. A parent that
// would close a circle is none. 16 bytes an id; O(1), but that an id with children already looks
// for it in what is before it; an eviction as the policy's with each parent that it offers as a
// refused candidate: few while owners use prefixes as policy.h says, the root last; all of a tier's
// where they do not.
std::unique_ptr<EvictionPolicy> NewLeafFirst(std::unique_ptr<EvictionPolicy> policy);

}  // namespace terrace
