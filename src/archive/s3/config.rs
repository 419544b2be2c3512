//! Where a bucket is and who asks: from the options, then from the environment at the time of the
//! call, then by Amazon's rules.
//!
//! | setting  | option              | environment                               | else                   |
//! |----------|---------------------|-------------------------------------------|------------------------|
//! | endpoint | `endpoint`          | `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` | Amazon's of the region |
//! | region   | `region`            | `AWS_REGION`, `AWS_DEFAULT_REGION`        | `us-east-1`            |
//! | key      | `access_key_id`     | `AWS_ACCESS_KEY_ID`                       | an error               |
//! | secret   | `secret_access_key` | `AWS_SECRET_ACCESS_KEY`                   | an error               |
//! | token    | `session_token`     | `AWS_SESSION_TOKEN`, if the key is from there too | none           |
//! | bucket   | `path_style`        |                                           | in the host with Amazon's endpoints, unless its name has dots or capitals; else in the path |

use rusty_s3::{Bucket, Credentials, UrlStyle};

use super::{S3Store, Settings};
use crate::archive::options::ArchiveOptions;
use crate::archive::url::bucket_of;
use crate::error::{Error, Result};
use crate::transport::read_roots;

/// The store at `url`; nothing is contacted yet. `environment` looks a variable up.
pub fn store(
    url: &str,
    options: &ArchiveOptions,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<S3Store> {
    let (name, prefix) = bucket_of(url)?;
    let variable = |name: &str| environment(name).filter(|value| !value.trim().is_empty());
    let region = options.region.clone();
    let region = region.or_else(|| variable("AWS_REGION"));
    let region = region.or_else(|| variable("AWS_DEFAULT_REGION"));
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if region.is_empty() || !region.bytes().all(sound) {
        return Err(Error::usage("the region (option \"region\", AWS_REGION) is no region's name"));
    }
    let given = options.endpoint.clone();
    let given = given.or_else(|| variable("AWS_ENDPOINT_URL_S3"));
    let given = given.or_else(|| variable("AWS_ENDPOINT_URL"));
    let endpoint = match given {
        Some(endpoint) => check_endpoint(&endpoint)?,
        None if region.starts_with("cn-") => format!("https://s3.{region}.amazonaws.com.cn"),
        None => format!("https://s3.{region}.amazonaws.com"),
    };
    let amazon = endpoint.contains(".amazonaws.com");
    let plain =
        name.bytes().all(|byte| byte.is_ascii_lowercase() || b"0123456789-".contains(&byte));
    let style = match options.path_style {
        Some(true) => UrlStyle::Path,
        Some(false) => UrlStyle::VirtualHost,
        None if amazon && plain => UrlStyle::VirtualHost,
        None => UrlStyle::Path,
    };
    let advice = match style {
        UrlStyle::VirtualHost => {
            "; with the option \"path_style\": true the bucket is not part of the host's name"
        }
        UrlStyle::Path => "",
    };
    let bad = |why: String| {
        Error::usage(format!(
            "the endpoint {endpoint} and the bucket {name} make no URL: {why}{advice}"
        ))
    };
    let parsed = endpoint.parse().map_err(|why| bad(format!("{why}")))?;
    let bucket = Bucket::new(parsed, style, name.clone(), region);
    let bucket = bucket.map_err(|why| bad(why.to_string()))?;
    let credentials = credentials(options, &variable)?;
    let roots = options.ca.as_deref().map(read_roots).transpose()?;
    let url = url.to_owned();
    Ok(S3Store::new(Settings { url, prefix, bucket, endpoint, amazon, credentials, roots }))
}

fn credentials(
    options: &ArchiveOptions,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Credentials> {
    let missing = |what: &str, option: &str, name: &str| {
        Error::usage(format!("no {what}: pass it in the option \"{option}\" or in {name}"))
    };
    // An empty text is an empty variable, passed on.
    let option = |option: &Option<String>| option.clone().filter(|text| !text.trim().is_empty());
    let own = option(&options.access_key_id);
    let is_own = own.is_some();
    let key = own.or_else(|| variable("AWS_ACCESS_KEY_ID"));
    let key = key.ok_or_else(|| missing("access key", "access_key_id", "AWS_ACCESS_KEY_ID"))?;
    let secret = option(&options.secret_access_key).or_else(|| variable("AWS_SECRET_ACCESS_KEY"));
    let secret = secret
        .ok_or_else(|| missing("secret key", "secret_access_key", "AWS_SECRET_ACCESS_KEY"))?;
    // The environment's token is of the environment's key.
    let token = option(&options.session_token)
        .or_else(|| variable("AWS_SESSION_TOKEN").filter(|_| !is_own));
    Ok(match token {
        Some(token) => Credentials::new_with_token(key, secret, token),
        None => Credentials::new(key, secret),
    })
}

fn check_endpoint(endpoint: &str) -> Result<String> {
    let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    let sound = rest.is_some_and(|rest| {
        let odd = |c: char| c.is_whitespace() || c.is_control() || "@?#".contains(c);
        !rest.is_empty() && !rest.starts_with('/') && !rest.contains(odd)
    });
    if !sound {
        return Err(Error::usage(
            "the endpoint (option \"endpoint\", AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL) must be \
             http://HOST:PORT or https://HOST, without keys in it",
        ));
    }
    Ok(endpoint.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::store::Store;
    use crate::error::ErrorKind;

    fn open(options: &ArchiveOptions, variables: &[(&str, &str)]) -> Result<S3Store> {
        store("s3://buck/pre", options, &|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "sec")];

    #[test]
    fn where_a_bucket_is() {
        let check = |options: ArchiveOptions, more: &[(&str, &str)], base: &str| {
            let store = open(&options, &[&KEYS[..], more].concat()).unwrap();
            assert_eq!(store.bucket.base_url().as_str(), base);
            assert_eq!((store.url(), store.prefix.as_str()), ("s3://buck/pre", "pre/"));
        };
        let none = ArchiveOptions::default;
        let endpoint = |url: &str| ArchiveOptions { endpoint: Some(url.into()), ..none() };
        check(none(), &[], "https://buck.s3.us-east-1.amazonaws.com/");
        check(none(), &[("AWS_REGION", "cn-x")], "https://buck.s3.cn-x.amazonaws.com.cn/");
        check(none(), &[("AWS_DEFAULT_REGION", "eu-1")], "https://buck.s3.eu-1.amazonaws.com/");
        check(none(), &[("AWS_ENDPOINT_URL", "http://h:1/")], "http://h:1/buck/");
        check(endpoint("http://h:2"), &[("AWS_ENDPOINT_URL", "http://h:1")], "http://h:2/buck/");
        let hosted = ArchiveOptions { path_style: Some(false), ..endpoint("https://h.x") };
        check(hosted, &[], "https://buck.h.x/");
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is() {
        let check = |options: &ArchiveOptions, variables: &[(&str, &str)], part: &str| {
            let Err(error) = open(options, variables) else { panic!("must fail: {part}") };
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.to_string().contains("sec ret"), "{error}");
        };
        let none = ArchiveOptions::default();
        check(&none, &[], "\"access_key_id\" or in AWS_ACCESS_KEY_ID");
        check(&none, &KEYS[..1], "\"secret_access_key\" or in AWS_SECRET_ACCESS_KEY");
        check(&none, &[("AWS_ACCESS_KEY_ID", " ")], "AWS_ACCESS_KEY_ID");
        for wrong in ["h:9000", "ftp://h", "http://", "http://k:sec ret@h", "http:///x"] {
            let options = ArchiveOptions { endpoint: Some(wrong.into()), ..none.clone() };
            check(&options, &KEYS, "http://HOST:PORT");
        }
        let options = ArchiveOptions { region: Some("a b".into()), ..none.clone() };
        check(&options, &KEYS, "no region");
        for address in ["http://127.0.0.1:9000", "http://[::1]"] {
            let endpoint = Some(address.into());
            let hosted = ArchiveOptions { endpoint, path_style: Some(false), ..none.clone() };
            check(&hosted, &KEYS, "the option \"path_style\": true");
        }
        for empty in ["", " "] {
            let options = ArchiveOptions { secret_access_key: Some(empty.into()), ..none.clone() };
            check(&options, &KEYS[..1], "\"secret_access_key\" or in AWS_SECRET_ACCESS_KEY");
        }
        let secret = ArchiveOptions { secret_access_key: Some("sec ret".into()), ..none };
        assert!(!format!("{secret:?}").contains("sec ret"));
    }

    #[test]
    fn the_environments_token_goes_with_its_key() {
        let token = [("AWS_SESSION_TOKEN", "t"), KEYS[0], KEYS[1]];
        let none = ArchiveOptions::default();
        assert_eq!(open(&none, &token).unwrap().credentials.token(), Some("t"));
        let own = ArchiveOptions { access_key_id: Some("mine".into()), ..none };
        assert_eq!(open(&own, &token).unwrap().credentials.token(), None);
        let empty = Some(String::new());
        let empty = ArchiveOptions {
            access_key_id: empty.clone(),
            secret_access_key: empty.clone(),
            session_token: empty,
            ..ArchiveOptions::default()
        };
        let store = open(&empty, &token).unwrap();
        assert_eq!((store.credentials.key(), store.credentials.token()), ("k", Some("t")));
    }
}
