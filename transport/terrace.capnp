# The control protocol between libterrace and terraced, over a Unix domain socket.
#
# - Every result carries `error`; a null pointer or code 0 is success, and only then do the other
#   fields count.
# - Keys travel as one Data of n x 32 bytes and extents as one Data of n x 16 bytes, because a
#   lookup of 256 keys is on the path of every request: one copy each way, no struct accessors.
#   An extent record is little-endian: bytes u64, eta_us u32, token_count u16, tier u8, flags u8.
# - hello is the only call before a session exists, and its parameters never change between majors.
# - Descriptors arrive attached to SharedFd capabilities; the capability itself has no methods.

@0xd6f3f6b1c6b0a2e7;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("terrace::wire");

struct Error {
  code @0 :UInt16;     # absl::StatusCode
  message @1 :Text;
}

interface SharedFd {}

interface Terrace {
  hello @0 (protocolMajor :UInt32, protocolMinor :UInt32, clientName :Text, tenant :Text)
        -> (error :Error, session :Session, welcome :Welcome);
}

struct Welcome {
  protocolMajor @0 :UInt32;
  protocolMinor @1 :UInt32;
  serverVersion @2 :Text;
  features @3 :List(Text);
  sessionId @4 :UInt64;
  tenant @5 :Text;
  salt @6 :Data;                # 32 bytes
  verify @7 :UInt8;             # VerifyMode
  maxKeysPerCall @8 :UInt32;
  defaultLeaseTtlMs @9 :UInt32;
  maxLeaseTtlMs @10 :UInt64;
  hostCapacityBytes @11 :UInt64;
  boardSlots @12 :UInt32;
  segment @13 :SharedFd;
  board @14 :SharedFd;
  readyEvent @15 :SharedFd;
  maxMessageBytes @16 :UInt64;  # a request above it ends the connection
  deviceCapacityBytes @17 :UInt64;  # of HBM; 0: none
  deviceSegment @18 :SharedFd;      # read-only
}

interface Session {
  registerLayout @0 (fingerprint :Data, kind :UInt8, partBytesPerToken :List(UInt32),
                     geometry :KvGeometry)  # null: unknown, or no KV
                 -> (error :Error, layoutId :UInt32);
  lookup @1 (layoutId :UInt32, keys :Data) -> (error :Error, extents :Data);
  matchTail @2 (layoutId :UInt32, parent :Data, grains :Data) -> (error :Error, match :TailMatch);
  reserve @3 (layoutId :UInt32, items :List(ReserveItem))
          -> (error :Error, results :List(ReserveResult));
  commit @4 (items :List(CommitItem)) -> (error :Error, results :List(Error));
  abort @5 (reservationIds :List(UInt64)) -> (error :Error);
  acquire @6 (layoutId :UInt32, keys :Data, ttlMs :UInt32, priority :UInt8,
              memory :UInt8)  # LeaseMemory
          -> (error :Error, reply :AcquireReply);
  release @7 (leaseIds :List(UInt64)) -> (error :Error);
  renew @8 (leaseId :UInt64, ttlMs :UInt32) -> (error :Error, deadlineUs :UInt64);
  flush @9 () -> (error :Error, pendingObjects :UInt64, pendingBytes :UInt64);
  status @10 () -> (error :Error, reply :StatusReply);
  list @11 (cursor :UInt64, limit :UInt32)
       -> (error :Error, objects :List(ObjectInfo), nextCursor :UInt64);
  show @12 (key :Data) -> (error :Error, object :ObjectInfo);
  remove @13 (key :Data) -> (error :Error);
  pin @14 (key :Data, pinned :Bool) -> (error :Error);
  verify @15 (cursor :UInt64) -> (error :Error, reply :VerifyReply);
  hint @16 (hints :List(HintItem)) -> (error :Error, results :List(HintResult));
  resize @17 (tier :Text, tenant :Text, bytes :UInt64, percent :UInt32) -> (error :Error, reply :ResizeReply);
  missRatioCurve @18 (tier :Text, tenant :Text) -> (error :Error, reply :MissRatioCurveReply);
  # One a key; tier 0: absent. The flag that advises to recompute is about the leading run.
  find @19 (layoutId :UInt32, keys :Data) -> (error :Error, extents :Data);
}

struct KvGeometry {             # config/kv_geometry.h
  modelId @0 :Text;
  dtype @1 :UInt8;
  order @2 :UInt8;
  layers @3 :UInt32;
  kvHeads @4 :UInt32;
  headDim @5 :UInt32;
  vHeadDim @6 :UInt32;
  ropeTheta @7 :Float64;
  ropeScaling @8 :Text;
  tpRank @9 :UInt32;
  tpSize @10 :UInt32;
  ppRank @11 :UInt32;
  ppSize @12 :UInt32;
  lora @13 :Text;
  engineLayout @14 :Text;
}

struct TailMatch {
  found @0 :Bool;
  key @1 :Data;
  matchedGrains @2 :UInt32;
  grainCount @3 :UInt32;
  info @4 :Data;                # one extent record
}

struct ReserveItem {
  key @0 :Data;
  parent @1 :Data;              # empty: none
  tokenCount @2 :UInt32;
  grainCount @3 :UInt32;
  costUs @4 :UInt32;
  position @5 :UInt32;
}

struct ReserveResult {
  error @0 :Error;
  reservationId @1 :UInt64;
  offset @2 :UInt64;
  retryAfterMs @3 :UInt32;
}

struct CommitItem {
  reservationId @0 :UInt64;
  partCrcs @1 :List(UInt32);
  grainFilters @2 :List(UInt16);
}

struct AcquireResult {
  error @0 :Error;
  offset @1 :UInt64;
  payloadBytes @2 :UInt64;
  tokenCount @3 :UInt32;
  grainCount @4 :UInt32;
  boardSlot @5 :UInt32;
  source @6 :UInt8;             # TierId
  partCrcs @7 :List(UInt32);
  retryAfterMs @8 :UInt32;
}

struct AcquireReply {
  leaseId @0 :UInt64;
  deadlineUs @1 :UInt64;
  results @2 :List(AcquireResult);
}

struct ObjectInfo {
  key @0 :Data;
  parent @1 :Data;              # empty: none
  fingerprint @2 :Data;
  kind @3 :UInt8;
  tokenCount @4 :UInt32;
  grainCount @5 :UInt32;
  costUs @6 :UInt32;
  partCount @7 :UInt32;
  payloadBytes @8 :UInt64;
  inHost @9 :Bool;
  inNvme @10 :Bool;
  pinned @11 :Bool;
  leaseCount @12 :UInt32;
  inHbm @13 :Bool;
}

struct VerifyReply {
  nextCursor @0 :UInt64;
  checked @1 :UInt64;
  corrupt @2 :UInt64;
  skipped @3 :UInt64;
  bytes @4 :UInt64;
  corruptKeys @5 :Data;
}

struct HintItem {
  kind @0 :UInt8;               # HintKind
  requestId @1 :UInt64;
  order @2 :UInt32;
  etaUs @3 :UInt64;             # from now; 0: unknown
  deadlineUs @4 :UInt64;        # from now; 0: none
  confidence @5 :Float32;       # 0 .. 1
  layoutId @6 :UInt32;
  keys @7 :Data;
}

struct HintResult {
  error @0 :Error;
  accepted @1 :UInt32;
}

struct ResizeReply {
  currentBytes @0 :UInt64;
  targetBytes @1 :UInt64;
  done @2 :Bool;
  heldByLeasesBytes @3 :UInt64;
}

struct MissRatioPoint {
  bytes @0 :UInt64;
  byAccesses @1 :Float32;
  byBytes @2 :Float32;
}

struct TierCapacity {
  tier @0 :Text;
  bytes @1 :UInt64;
}

struct MissRatioCurveReply {
  points @0 :List(MissRatioPoint);
  accesses @1 :UInt64;
  sampled @2 :UInt64;
  capacities @3 :List(TierCapacity);
  accessesPerHour @4 :Float64;
  hitSavesUs @5 :Float64;
}

struct TierStatus {
  name @0 :Text;
  detail @1 :Text;
  capacityBytes @2 :UInt64;
  usedBytes @3 :UInt64;
  objects @4 :UInt64;
  populatedBytes @5 :UInt64;
  hugePageBytes @6 :UInt64;
}

struct SessionStatus {
  id @0 :UInt64;
  pid @1 :Int32;
  uid @2 :UInt32;
  clientName @3 :Text;
  tenant @4 :Text;
  leases @5 :UInt64;
  reservations @6 :UInt64;
  ageMs @7 :UInt64;
}

struct Counter {
  name @0 :Text;
  value @1 :UInt64;
}

struct StatusReply {
  version @0 :Text;
  pid @1 :Int32;
  uptimeMs @2 :UInt64;
  socketPath @3 :Text;
  stateDir @4 :Text;
  verify @5 :UInt8;
  tiers @6 :List(TierStatus);
  sessions @7 :List(SessionStatus);
  objects @8 :UInt64;
  leases @9 :UInt64;
  reservations @10 :UInt64;
  counters @11 :List(Counter);
}
