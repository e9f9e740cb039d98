package credentials

import "strings"

// Names of the presets.
const (
	PresetAlicomCN   = "alicom-cn"
	PresetAlicomIntl = "alicom-intl"
)

// Preset is what all queues have in common that Alibaba Cloud Communications
// (Alicom) keeps for its customers.
type Preset struct {
	// Name is how the configuration calls it.
	Name string
	// MNSEndpoint is where the queues are: an account of Alicom's, not the
	// customer's.
	MNSEndpoint string
	// TokenEndpoint is where Dybaseapi gives tokens for them.
	TokenEndpoint string
	// Region is the region that Dybaseapi is asked in.
	Region string
}

// Presets gives every preset. The addresses are those of Alibaba's own Alicom
// consumers.
func Presets() []Preset {
	return []Preset{
		{ //nolint:gosec // G101: addresses
			Name:          PresetAlicomCN,
			MNSEndpoint:   "https://1943695596114318.mns.cn-hangzhou.aliyuncs.com",
			TokenEndpoint: "https://dybaseapi.aliyuncs.com",
			Region:        "cn-hangzhou",
		},
		{ //nolint:gosec // G101: addresses
			Name:          PresetAlicomIntl,
			MNSEndpoint:   "https://1493622401794734.mns.ap-southeast-1.aliyuncs.com",
			TokenEndpoint: "https://dybaseapi.ap-southeast-1.aliyuncs.com",
			Region:        "ap-southeast-1",
		},
	}
}

// PresetNamed finds the preset that the configuration calls name.
func PresetNamed(name string) (Preset, bool) {
	for _, p := range Presets() {
		if p.Name == name {
			return p, true
		}
	}
	return Preset{}, false
}

// alicomPrefix begins the name of every Alicom queue: Alicom-Queue-UID-TYPE.
const alicomPrefix = "Alicom-Queue-"

// PresetFor finds the preset of a queue by its name: alicom-intl for
// Alicom-Queue-...-Globe*, alicom-cn for any other Alicom-Queue-*.
func PresetFor(queue string) (Preset, bool) {
	if !strings.HasPrefix(queue, alicomPrefix) {
		return Preset{}, false
	}
	if strings.HasPrefix(MessageType(queue), "Globe") {
		return PresetNamed(PresetAlicomIntl)
	}
	return PresetNamed(PresetAlicomCN)
}

// MessageType reads the message type from the name of an Alicom queue, its part
// after the last hyphen. Empty for any other queue, and for one without a type.
func MessageType(queue string) string {
	rest, found := strings.CutPrefix(queue, alicomPrefix)
	if !found {
		return ""
	}
	_, messageType, _ := strings.Cut(rest, "-")
	return messageType[strings.LastIndexByte(messageType, '-')+1:]
}

// MessageTypes are the message types that Alicom documents. Others are allowed.
func MessageTypes() []string {
	return []string{
		"SmsReport", "SmsUp", "VoiceReport", "VoiceRecordReport", "VoiceCallReport",
		"GlobeSmsReport", "SecretReport", "MnsCardVender", "MnsCardTemplate",
		"DypnsSmsVerifyReport", "FlowReport",
	}
}
